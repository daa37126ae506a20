"""Hypothesis without deadlines: a slow machine is no failure.

Under CI the examples are the same in every run, so that a red run means a change; elsewhere they
are new each time, which is what finds the next fault.
"""

import os

from hypothesis import settings

settings.register_profile("softlabel", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("softlabel")
