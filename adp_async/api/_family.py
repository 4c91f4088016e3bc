"""What the families of operations share: the caller, and how they call and page.

A family's method is one call of `Family._call` (or `Family._listing`) with a row of
`adp_async._sansio.endpoints`, the type of the reply, and its arguments by name; the row decides
which argument goes where.
"""

from __future__ import annotations

from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    NoReturn,
    Protocol,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from adp_async._sansio.arguments import checked_options, checked_texts
from adp_async._sansio.outward import outward
from adp_async._sansio.rules import count
from adp_async._sansio.urls import Placed, place
from adp_async.api._reading import Found, frame
from adp_async.errors import AdpError, UnreadableReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from adp_async._sansio.endpoints import Endpoint
    from adp_async._sansio.messages import Reply

#: Of pandas, which need not be here.
DataFrame: TypeAlias = Any

T = TypeVar("T")
Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
PageType = TypeVar("PageType", bound="Page[object]")

#: How a listing is read.
READING: Final = "`await listing.to_list()`, or `async for item in listing`"
#: Items of a page that is asked for when only some are wanted.
PAGE: Final = 1000


class CallOptions(TypedDict, total=False):
    """Options of every operation, besides its own arguments.

    *retry_token*: 1 to 64 characters under which the service applies a repeated request once;
    generated where the operation takes one and none is given.  *request_id*: the ``opc-request-id``
    to send (letters, digits, ``_`` and ``-``).  *principal*: sent as ``dh-user-principal``.
    *timeout*: seconds for the whole call with its retries.  *on_reply*: called with the reply, for
    its ``request_id``, ``etag`` and headers; a call of several pages calls it for each.
    """

    retry_token: str
    request_id: str
    principal: str
    timeout: float
    on_reply: Callable[[Reply], object]


class CallArguments(CallOptions, total=False):
    """Keywords of `Session.call`: the operation's arguments, and options.

    *path* and *query* go into the URL, quoted; *body* is JSON, or bytes as they are.
    """

    path: Mapping[str, str]
    query: Mapping[str, object]
    body: object


class Caller(Protocol):
    """Signs and sends requests: a session, or a test's replacement."""

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

    Nothing is requested before the first item; a page is fetched when the one before it is used
    up.  Every ``async for`` starts again.

    ``await listing.to_list()``, `first` and `to_pandas` read it at once.
    """

    __slots__ = ("_fetch", "_most", "_operation", "_start")

    def __init__(
        self,
        fetch: Callable[[str | None], Awaitable[PageType]],
        start: str | None,
        operation: str = "",
        most: int | None = None,
    ) -> None:
        self._fetch = fetch
        self._start = start
        self._operation = operation
        self._most = most

    def __repr__(self) -> str:
        return f"<Listing of {self._operation} | async for item in it>"

    def _repr_html_(self) -> str:
        return _shown(self._operation, READING, self._start)

    async def __aiter__(self) -> AsyncIterator[Item]:
        token, more, left = self._start, self._most != 0, self._most
        while more:
            page = await self._fetch(token)
            for item in page.items[:left]:
                yield item  # type: ignore[misc]
            more, token = _next(token, page.next_page_token)
            left, more = _less(left, page, more=more)

    if not TYPE_CHECKING:  # for a type checker, these are not there

        def __iter__(self) -> NoReturn:
            message = f"a listing is asynchronous: {READING}"
            raise TypeError(message)

        def __await__(self) -> NoReturn:
            message = f"a listing is not awaited itself: {READING}"
            raise TypeError(message)

    async def to_list(self) -> list[Item]:
        """All of it as a list, which a notebook shows as a table."""
        try:
            return Found([item async for item in self])
        except AdpError as error:
            raise outward(error) from error.__cause__

    async def first(self) -> Item | None:
        """The first item, or None when there is none; sends one request, as a rule."""
        found = await self._first().to_list()
        return found[0] if found else None

    async def to_pandas(self) -> DataFrame:
        """All of it as a `pandas.DataFrame`, a row for each item; ImportError without pandas.

        Parts are columns of their own (``metrics.loss``, ``params.lr``), times are datetimes.
        """
        return frame(await self.to_list())

    def _first(self) -> Self:
        most = 1 if self._most is None else min(1, self._most)
        return type(self)(self._fetch, self._start, self._operation, most)

    async def pages(self) -> AsyncIterator[PageType]:
        """All pages themselves, with ``items``, ``next_page_token`` and their other fields."""
        token, more = self._start, True
        while more:
            page = await self._fetch(token)
            yield page
            more, token = _next(token, page.next_page_token)


class BlockingListing(Generic[Item, PageType]):
    """Everything an operation finds, page by page: ``for item in listing``.

    Nothing is requested before the first item; a page is fetched, in the calling thread, when the
    one before it is used up.  Every ``for`` starts again, and may end early.
    """

    __slots__ = ("_listing", "_wait")

    def __init__(
        self,
        listing: Listing[Item, PageType],
        wait: Callable[[Awaitable[PageType]], PageType],
    ) -> None:
        self._listing = listing
        self._wait = wait

    def __repr__(self) -> str:
        return f"<Listing of {self._listing._operation} | for item in it>"

    def _repr_html_(self) -> str:
        reading = "`listing.to_list()`, or `for item in listing`"
        return _shown(self._listing._operation, reading, self._listing._start)

    def __iter__(self) -> Iterator[Item]:
        left = self._listing._most
        if left == 0:
            return
        for page in self.pages():
            yield from page.items[:left]  # type: ignore[misc]
            left, more = _less(left, page, more=True)
            if not more:
                return

    def to_list(self) -> list[Item]:
        """All of it as a list, which a notebook shows as a table."""
        try:
            return Found(self)
        except AdpError as error:
            raise outward(error) from error.__cause__

    def first(self) -> Item | None:
        """The first item, or None when there is none; sends one request, as a rule."""
        found = BlockingListing(self._listing._first(), self._wait).to_list()
        return found[0] if found else None

    def to_pandas(self) -> DataFrame:
        """All of it as a `pandas.DataFrame`; see the asynchronous `Listing.to_pandas`."""
        return frame(self.to_list())

    def pages(self) -> Iterator[PageType]:
        """All pages themselves, with ``items``, ``next_page_token`` and their other fields."""
        # One coroutine a page: an asynchronous generator that is left early would have to be
        # closed on the event loop.
        token, more = self._listing._start, True
        while more:
            page = self._wait(self._listing._fetch(token))
            yield page
            more, token = _next(token, page.next_page_token)


def _less(left: int | None, page: Page[object], *, more: bool) -> tuple[int | None, bool]:
    """How many items may still come after *page*, and whether there are *more* to ask for."""
    if left is None:
        return None, more
    left = max(0, left - len(page.items))
    return left, more and left > 0


def _shown(operation: str, reading: str, start: str | None) -> str:
    """A listing for a notebook; showing it asks the service for nothing."""
    from adp_async._html import facts

    return facts({"listing of": operation, "to read it": reading, "starts at": start})


def _next(token: str | None, following: str | None) -> tuple[bool, str | None]:
    if following and following == token:
        message = "the service returned the same page token twice: this listing would never end"
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
        placed = _placed(endpoint, arguments, options)
        return await self._caller.call(
            endpoint,
            path=placed.path,
            query=placed.query,
            body=placed.body,
            returning=returning,
            **options,
        )

    async def _do(self, endpoint: Endpoint, options: CallOptions, /, **arguments: object) -> None:
        """An operation with an empty reply."""
        placed = _placed(endpoint, arguments, options)
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
        most: int | None = None,
        late: Callable[[], Awaitable[dict[str, object]]] | None = None,
        **arguments: object,
    ) -> Listing[Item, PageType]:
        """An operation that pages by ``page_token`` and ``next_page_token``.

        Of all pages together, *most* items are given.  *late* finds more arguments, once, when the
        first page is asked for.
        """
        if most is not None:
            most = _count(most)
            if "max_results" in arguments and arguments["max_results"] is None:
                arguments["max_results"] = max(1, min(most, PAGE))  # no larger page than needed

        async def fetch(token: str | None) -> PageType:
            nonlocal late
            if late is not None:
                arguments.update(await late())
                late = None
            return await self._call(endpoint, page_type, options, **arguments, page_token=token)

        # Report a wrong argument at the call, not at the first page.
        _placed(endpoint, {**arguments, "page_token": page_token}, options)
        return Listing(fetch, page_token, endpoint.operation, most)


def _placed(endpoint: Endpoint, arguments: Mapping[str, object], options: CallOptions) -> Placed:
    try:
        checked_options(options, endpoint.operation)
        return place(endpoint, arguments)
    except (TypeError, ValueError) as error:  # the caller's mistake, wherever we found it
        raise outward(error) from error.__cause__


def _count(limit: object) -> int:
    try:
        return count(limit, least=0)
    except ValueError as error:
        message = f"limit {error}"
        raise ValueError(message) from None


def keys(delete_tags: Sequence[str]) -> list[dict[str, str]]:
    """The keys of tags to delete, as they are sent."""
    return [{"key": key} for key in checked_texts(delete_tags, "delete_tags")]
