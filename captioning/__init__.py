"""Captions and camera-motion labels. Nothing is here yet: a run without them is complete and says so."""
