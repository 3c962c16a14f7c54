"""What verbs take from the command line."""

from svertka.errors import UsageError


def whole_numbers(option: str, text: str | None) -> list[int] | None:
    """The numbers of "256,288", given as `option`; None for None."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text} is not a list of whole numbers; give pixels, such as 256,288") from None
