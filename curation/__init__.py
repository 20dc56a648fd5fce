"""Sources, clips, media, rules, the run folder and the engine."""
