"""How a refusal is answered."""

from __future__ import annotations

from fastapi.responses import JSONResponse

MAX_ERROR_CHARS = 2000  # messages quote what they found, which may be long


def error_response(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message[:MAX_ERROR_CHARS]}, status_code=status)
