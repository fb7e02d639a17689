"""How the files of the demo model are made: a recipe in torch for each network, and a script that runs it (`make_*.py`)."""
