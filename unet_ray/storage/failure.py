"""What another library's exception says, as a part of one of our sentences."""


def reason(error: BaseException) -> str:
    r"""First line of the exception's text, or its type where it has none.

    >>> reason(ValueError("bad strip\nin detail")), reason(KeyError())
    ('bad strip', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
