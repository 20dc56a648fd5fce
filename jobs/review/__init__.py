"""The page where people pick, trim and caption clips, and what becomes of their decisions.

`store` keeps decisions, `candidates` what there is to decide about, `preview` cuts what is played, `app` serves the pages,
`selected` puts what was decided into a selection and its samples.
"""
