"""The pages' files, which need nothing from anywhere else, and what browsers are told of them."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

STATIC = Path(__file__).parent / "static"
# Nothing from another place is loaded, run or asked, whatever a model writes.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes(page: str) -> list[BaseRoute]:
    """`page` at "/", and the files beside it that belong to it or to all pages."""

    def at(path: str, name: str) -> Route:
        async def file(request: Request) -> Response:
            return FileResponse(STATIC / name, headers=HEADERS)

        return Route(path, file)

    names = ["style.css", "events.js", f"{page}.js"]
    return [at("/", f"{page}.html"), *(at(f"/static/{name}", name) for name in names)]
