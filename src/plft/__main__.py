"""`python -m plft` is the command line; `accelerate launch -m plft train ...` runs it on several processes."""

from plft.apps.cli import main

if __name__ == "__main__":
    main()
