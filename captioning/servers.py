def addresses(book: str) -> dict[str, list[str]]:
    raise NotImplementedError
