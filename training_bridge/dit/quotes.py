"""Visual text: what stands in quotation marks in a caption is what shall be read in the picture."""

import re

QUOTED = re.compile(r"“([^”]+)”|«([^»]+)»|\"([^\"]+)\"|(?<!\w)‘(.+?)’(?!\w)|(?<!\w)'(.+?)'(?!\w)", re.DOTALL)


def quoted(caption: str) -> str:
    """What stands in quotation marks in a caption, a line each. An apostrophe is none."""
    return "\n".join(next(part for part in found if part).strip() for found in QUOTED.findall(caption))
