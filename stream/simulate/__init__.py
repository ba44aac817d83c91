"""Payments with fraud and delayed chargebacks, for the demo and the tests."""

from stream.simulate.settings import REAL_DELAY, SHORT_DELAY, START_MS, LabelDelay, SimulationSettings
from stream.simulate.simulation import DEMO_MATURITY_MS, Simulation, demo_settings, simulate

__all__ = [
    "DEMO_MATURITY_MS",
    "REAL_DELAY",
    "SHORT_DELAY",
    "START_MS",
    "LabelDelay",
    "Simulation",
    "SimulationSettings",
    "demo_settings",
    "simulate",
]
