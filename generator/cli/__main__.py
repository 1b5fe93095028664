"""``python -m dsv4_aot.generator.cli`` is ``dsv4-aot``."""

from dsv4_aot.generator.cli import main

main()
