"""Programs that are included, as scripts: ``propeller/NAME.py`` in an experiment."""
