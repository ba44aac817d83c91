"""Currencies of ISO 4217 and their minor units.

Frozen here and not read from a library: a library's update would change decisions without a record
that says so. Metals, test codes and units of account that nobody pays in are left out. Codes that
were withdrawn since 2015 are in, for backfills.
"""

from types import MappingProxyType
from typing import Final

_TWO = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF
    CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL
    HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU
    MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR
    SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED
    VES WST XAD XCD XCG XDR YER ZAR ZMW ZWG
"""
_ZERO = """
    BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF
"""
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_FOUR = "CLF UYW"
_WITHDRAWN_ZERO = "BYR"
_WITHDRAWN_TWO = "ANG BGN CUC HRK LTL MRO SLL STD VEF ZWL"

EXPONENTS: Final = MappingProxyType(
    dict.fromkeys((_TWO + _WITHDRAWN_TWO).split(), 2)
    | dict.fromkeys((_ZERO + _WITHDRAWN_ZERO).split(), 0)
    | dict.fromkeys(_THREE.split(), 3)
    | dict.fromkeys(_FOUR.split(), 4)
)
"""Decimal digits of the minor unit, by alphabetic code: `EUR` 2, `JPY` 0, `BHD` 3."""

CURRENCIES: Final = frozenset(EXPONENTS)
