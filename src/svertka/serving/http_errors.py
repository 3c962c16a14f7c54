"""Why a request gets no answer: a status of HTTP, one sentence, and what the client may do about it."""


class HTTPError(Exception):
    """`status` and `sentence` for the client, and `headers` that go with them.

    `reason`: the same where it is told of one of several pictures.
    """

    def __init__(
        self, status: int, sentence: str, headers: dict[str, str] | None = None, reason: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}
        self.reason = sentence if reason is None else reason
