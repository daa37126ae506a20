"""Hypothesis without deadlines: a slow machine is no failure."""

from hypothesis import settings

settings.register_profile("softlabel", deadline=None)
settings.load_profile("softlabel")
