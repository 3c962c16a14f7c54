"""The error that a request is answered with."""


class HTTPError(Exception):
    """An HTTP `status`, one `sentence` for the client, and `headers`.

    `reason`: the sentence in the entry of an image among several; default: `sentence`.
    """

    def __init__(
        self, status: int, sentence: str, headers: dict[str, str] | None = None, reason: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}
        self.reason = sentence if reason is None else reason
