"""Prequential evaluation of a payments file and a labels file, through the stages of the live way."""
