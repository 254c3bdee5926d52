"""The review desk: `finextract-tui`."""
