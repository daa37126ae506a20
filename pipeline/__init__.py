"""The work of softlabel as functions and small classes that know nothing of the command line."""
