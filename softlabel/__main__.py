"""`python -m softlabel`: the command line without its installed script."""

from softlabel.cli import main

if __name__ == "__main__":
    main()
