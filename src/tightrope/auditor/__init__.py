"""Checks certificates with code of its own: plain NumPy, written to be read. Of Tightrope it imports records only."""
