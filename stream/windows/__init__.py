"""Recent payments of each entity, and the features computed from them. Pure: no clock, no I/O."""
