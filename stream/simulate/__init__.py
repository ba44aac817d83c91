"""Payments with fraud and delayed chargebacks, for the demo and the tests."""

from stream.simulate.bad import CAUSES, Injected, bad_payments, inject, spoil
from stream.simulate.settings import REAL_DELAY, SHORT_DELAY, START_MS, LabelDelay, SimulationSettings
from stream.simulate.simulation import DEMO_MATURITY_MS, Simulation, demo_settings, simulate

__all__ = [
    "CAUSES",
    "DEMO_MATURITY_MS",
    "REAL_DELAY",
    "SHORT_DELAY",
    "START_MS",
    "Injected",
    "LabelDelay",
    "Simulation",
    "SimulationSettings",
    "bad_payments",
    "demo_settings",
    "inject",
    "simulate",
    "spoil",
]
