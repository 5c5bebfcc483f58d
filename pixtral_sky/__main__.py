"""``python -m pixtral_sky``."""

from pixtral_sky.cli.app import main

main()
