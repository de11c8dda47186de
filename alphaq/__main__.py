"`python -m alphaq` is the `alphaq` command."
from alphaq.cli import main

if __name__ == '__main__': main()
