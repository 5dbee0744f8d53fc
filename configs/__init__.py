"""Values of every phase; `common.py` lists all fields, each phase's file changes what differs."""
