"""Camera-motion labels over the kept series. Captions are not here yet: a run without them is complete and says so."""
