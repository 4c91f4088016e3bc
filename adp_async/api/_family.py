"""What the families of operations share: the caller, one way to call, one way to page.

A family's method is one call of `Family.call` (or `Family.listing`) with a row of
`adp_async._sansio.endpoints`, the type of the reply, and its arguments by name; the row says
which argument goes where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar, Unpack, overload

from adp_async._sansio.arguments import checked_texts
from adp_async._sansio.urls import place
from adp_async.errors import UnreadableReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply

T = TypeVar("T")
Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
PageType = TypeVar("PageType", bound="Page[object]")


class CallOptions(TypedDict, total=False):
    """What every operation takes besides its own arguments.

    *retry_token*: 1 to 64 characters that make a repeated create one and the same; made up where
    the operation takes one and none is given.  *request_id*: the ``opc-request-id`` to send
    (letters, digits, ``_`` and ``-``).  *principal*: sent as ``dh-user-principal``.  *timeout*:
    seconds for the whole call with its retries.  *on_reply*: called with the reply, for its
    ``request_id``, ``etag`` and headers; a call of several pages calls it for each.
    """

    retry_token: str
    request_id: str
    principal: str
    timeout: float
    on_reply: Callable[[Reply], object]


class CallArguments(CallOptions, total=False):
    """What `Session.call` takes by keyword: where the operation's arguments go, and options.

    *path* and *query* go into the URL, quoted; *body* is JSON, or bytes as they are.
    """

    path: Mapping[str, str]
    query: Mapping[str, object]
    body: object


class Caller(Protocol):
    """Whoever signs and sends: the session, or a test's stand-in."""

    @overload
    async def call(
        self, endpoint: Endpoint, *, returning: type[T], **given: Unpack[CallArguments]
    ) -> T: ...

    @overload
    async def call(
        self, endpoint: Endpoint, *, returning: None = None, **given: Unpack[CallArguments]
    ) -> object: ...

    async def fetch(self, endpoint: Endpoint, **given: Unpack[CallArguments]) -> Reply:
        """The reply itself, checked for errors and not decoded."""
        ...


class Page(Protocol[ItemOut]):
    """One page of a listing: its items, and the token of the next page or None."""

    @property
    def items(self) -> Sequence[ItemOut]: ...

    @property
    def next_page_token(self) -> str | None: ...


class Listing(Generic[Item, PageType]):
    """Everything an operation finds, page by page: ``async for item in listing``.

    Nothing is asked for until the first item is; a page is fetched when the one before it is
    used up.  Every ``async for`` starts anew.
    """

    __slots__ = ("_fetch", "_start")

    def __init__(
        self, fetch: Callable[[str | None], Awaitable[PageType]], start: str | None
    ) -> None:
        self._fetch = fetch
        self._start = start

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for page in self.pages():
            for item in page.items:
                yield item  # type: ignore[misc]

    async def pages(self) -> AsyncIterator[PageType]:
        """The pages themselves, with ``items``, ``next_page_token`` and what else they carry."""
        token, more = self._start, True
        while more:
            page = await self._fetch(token)
            yield page
            more, token = _next(token, page.next_page_token)


class BlockingListing(Generic[Item, PageType]):
    """Everything an operation finds, page by page: ``for item in listing``.

    Nothing is asked for until the first item is; a page is fetched, in the calling thread, when
    the one before it is used up.  Every ``for`` starts anew, and may end early.
    """

    __slots__ = ("_listing", "_wait")

    def __init__(
        self,
        listing: Listing[Item, PageType],
        wait: Callable[[Awaitable[PageType]], PageType],
    ) -> None:
        self._listing = listing
        self._wait = wait

    def __iter__(self) -> Iterator[Item]:
        for page in self.pages():
            yield from page.items  # type: ignore[misc]

    def pages(self) -> Iterator[PageType]:
        """The pages themselves, with ``items``, ``next_page_token`` and what else they carry."""
        # One coroutine a page, in place of the asynchronous generator, which would have to be
        # closed on the event loop by whoever leaves early.
        token, more = self._listing._start, True
        while more:
            page = self._wait(self._listing._fetch(token))
            yield page
            more, token = _next(token, page.next_page_token)


def _next(token: str | None, following: str | None) -> tuple[bool, str | None]:
    if following and following == token:
        message = "the service gave the same page token twice: this listing would never end"
        raise UnreadableReply(message)
    return bool(following), following


class Family:
    """The operations of one kind of thing; a session has one of each family."""

    __slots__ = ("_caller",)

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._caller!r}>"

    async def _call(
        self,
        endpoint: Endpoint,
        returning: type[T],
        options: CallOptions,
        /,
        **arguments: object,
    ) -> T:
        placed = place(endpoint, arguments)
        return await self._caller.call(
            endpoint,
            path=placed.path,
            query=placed.query,
            body=placed.body,
            returning=returning,
            **options,
        )

    async def _do(self, endpoint: Endpoint, options: CallOptions, /, **arguments: object) -> None:
        """An operation whose reply says nothing."""
        placed = place(endpoint, arguments)
        await self._caller.call(
            endpoint, path=placed.path, query=placed.query, body=placed.body, **options
        )

    def _listing(
        self,
        endpoint: Endpoint,
        page_type: type[PageType],
        options: CallOptions,
        /,
        *,
        page_token: str | None,
        **arguments: object,
    ) -> Listing[Item, PageType]:
        """An operation that pages by ``page_token`` and ``next_page_token``."""

        def fetch(token: str | None) -> Awaitable[PageType]:
            return self._call(endpoint, page_type, options, **arguments, page_token=token)

        # A wrong argument is heard of at the call, not at the first page.
        place(endpoint, {**arguments, "page_token": page_token})
        return Listing(fetch, page_token)


def keys(delete_tags: Sequence[str]) -> list[dict[str, str]]:
    """The keys of tags to delete as the wire has them."""
    return [{"key": key} for key in checked_texts(delete_tags, "delete_tags")]
