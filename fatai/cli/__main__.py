"""Run the command: `python -m fatai.cli`."""

from fatai.cli import main

if __name__ == "__main__":
    main()
