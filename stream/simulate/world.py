"""What the simulated world is made of: cities, categories of trade, and kinds of fraud. Constants only."""

import enum
from typing import Final, NamedTuple


class City(NamedTuple):
    """`weight`: relative number of accounts that live there; 0 for a place where people only travel to."""

    country: str
    latitude: float
    longitude: float
    utc_offset_min: int
    weight: float


CITIES: Final = (
    City("DE", 52.52, 13.40, 60, 9.0),
    City("DE", 48.14, 11.58, 60, 6.0),
    City("DE", 53.55, 9.99, 60, 5.0),
    City("DE", 50.11, 8.68, 60, 4.0),
    City("FR", 48.86, 2.35, 60, 9.0),
    City("FR", 45.76, 4.84, 60, 4.0),
    City("FR", 43.30, 5.37, 60, 3.0),
    City("ES", 40.42, -3.70, 60, 6.0),
    City("ES", 41.39, 2.17, 60, 5.0),
    City("IT", 41.90, 12.50, 60, 5.0),
    City("IT", 45.46, 9.19, 60, 5.0),
    City("NL", 52.37, 4.90, 60, 4.0),
    City("BE", 50.85, 4.35, 60, 3.0),
    City("AT", 48.21, 16.37, 60, 3.0),
    City("PT", 38.72, -9.14, 0, 3.0),
    City("IE", 53.35, -6.26, 0, 2.0),
    City("FI", 60.17, 24.94, 120, 2.0),
    City("GR", 37.98, 23.73, 120, 2.0),
    City("GB", 51.51, -0.13, 0, 0.0),
    City("US", 40.71, -74.01, -300, 0.0),
    City("US", 25.76, -80.19, -300, 0.0),
    City("TR", 41.01, 28.98, 180, 0.0),
    City("JP", 35.68, 139.69, 540, 0.0),
    City("BR", -23.55, -46.63, -180, 0.0),
    City("TH", 13.76, 100.50, 420, 0.0),
    City("ZA", -26.20, 28.05, 120, 0.0),
)


class Money(NamedTuple):
    """`minor_per_eur_cent`: minor units of the currency for one cent; a fixed rate, not a market."""

    currency: str
    minor_per_eur_cent: float


EURO: Final = Money("EUR", 1.0)
MONEY_OF: Final = {
    "GB": Money("GBP", 0.86),
    "US": Money("USD", 1.09),
    "TR": Money("TRY", 41.0),
    "JP": Money("JPY", 1.63),
    "BR": Money("BRL", 6.1),
    "TH": Money("THB", 37.5),
    "ZA": Money("ZAR", 20.2),
}


class Channel(enum.IntEnum):
    """Codes of the contract's `channel`, in the order of `CHANNEL_NAMES`."""

    POS = 0
    ECOM = 1
    ATM = 2
    TRANSFER = 3


CHANNEL_NAMES: Final = ("pos", "ecom", "atm", "transfer")


class Category(NamedTuple):
    """A kind of trade. `median_eur` and `sigma`: of its log-normal amounts. `weight`: share of all payments."""

    name: str
    mcc: str
    channel: Channel
    median_eur: float
    sigma: float
    weight: float


CATEGORIES: Final = (
    Category("grocery", "5411", Channel.POS, 26.0, 0.65, 20.0),
    Category("restaurant", "5812", Channel.POS, 32.0, 0.55, 9.0),
    Category("fast food", "5814", Channel.POS, 10.0, 0.45, 9.0),
    Category("fuel", "5541", Channel.POS, 48.0, 0.35, 7.0),
    Category("transit", "4111", Channel.POS, 3.8, 0.50, 7.0),
    Category("pharmacy", "5912", Channel.POS, 17.0, 0.65, 5.0),
    Category("clothing", "5651", Channel.POS, 55.0, 0.65, 5.0),
    Category("electronics", "5732", Channel.POS, 110.0, 0.90, 1.8),
    Category("jewellery", "5944", Channel.POS, 180.0, 0.90, 0.4),
    Category("hotel", "7011", Channel.POS, 150.0, 0.60, 1.2),
    Category("cash", "6011", Channel.ATM, 80.0, 0.60, 5.5),
    Category("online shop", "5399", Channel.ECOM, 34.0, 0.80, 11.0),
    Category("digital goods", "5815", Channel.ECOM, 8.0, 0.60, 7.0),
    Category("games", "5816", Channel.ECOM, 13.0, 0.85, 3.0),
    Category("subscription", "4899", Channel.ECOM, 12.0, 0.35, 4.0),
    Category("online electronics", "5732", Channel.ECOM, 130.0, 0.90, 1.6),
    Category("airline", "4511", Channel.ECOM, 210.0, 0.70, 0.8),
    Category("transfer", "4829", Channel.TRANSFER, 140.0, 1.05, 3.5),
)
CATEGORY_INDEX: Final = {category.name: index for index, category in enumerate(CATEGORIES)}


class Entry(enum.IntEnum):
    """Codes of the contract's `entry_mode`, in the order of `ENTRY_NAMES`."""

    NONE = 0
    CHIP = 1
    CONTACTLESS = 2
    MAGSTRIPE = 3
    KEYED = 4
    STORED = 5
    FALLBACK = 6  # the chip did not work, so the stripe was read


ENTRY_NAMES: Final = (None, "chip", "contactless", "magstripe", "manual", "credential_on_file", "fallback")


class ThreeDs(enum.IntEnum):
    """Codes of the contract's `three_ds`, in the order of `THREE_DS_NAMES`; ABSENT where it has no sense."""

    ABSENT = 0
    NO = 1
    FRICTIONLESS = 2
    CHALLENGED = 3
    ATTEMPTED = 4
    FAILED = 5


THREE_DS_NAMES: Final = (None, "none", "frictionless", "challenged", "attempted", "failed")


class Kind(enum.IntEnum):
    """What a payment really is. Only `truth` tells it; no payment does."""

    LEGITIMATE = 0
    STOLEN = 1  # a spree with a stolen card, often far from home
    TESTING = 2  # many tiny amounts, then a large one
    TERMINAL = 3  # a compromised point of acceptance, for weeks
    COUNTERFEIT = 4  # a copied stripe, used in another country
    TAKEOVER = 5  # a new device, larger transfers
    FIRST_PARTY = 6  # the customer denies what he bought
    MULE = 7  # an account that passes money on
    APP_SCAM = 8  # the customer pays a fraudster himself


class Fraud(NamedTuple):
    """`share`: of all fraudulent payments. `mean_size`: payments of an episode. `never`: share never reported."""

    share: float
    mean_size: float
    never: float
    fraud_type: str


FRAUDS: Final = {
    Kind.STOLEN: Fraud(0.28, 7.0, 0.05, "stolen"),
    Kind.TESTING: Fraud(0.21, 8.0, 0.15, "stolen"),
    Kind.TERMINAL: Fraud(0.09, 1.0, 0.10, "merchant"),
    Kind.COUNTERFEIT: Fraud(0.17, 4.0, 0.05, "counterfeit"),
    Kind.TAKEOVER: Fraud(0.12, 3.0, 0.05, "takeover"),
    Kind.FIRST_PARTY: Fraud(0.04, 1.0, 0.10, "first_party"),
    Kind.MULE: Fraud(0.05, 4.0, 0.20, "mule"),
    Kind.APP_SCAM: Fraud(0.04, 1.5, 0.15, "app_scam"),
}
assert abs(sum(fraud.share for fraud in FRAUDS.values()) - 1.0) < 1e-9, "shares of the kinds of fraud sum to one"
