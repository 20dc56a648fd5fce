"""The flow-matching transformer: Movie Gen's backbone, its text, its objective and its sampler."""
