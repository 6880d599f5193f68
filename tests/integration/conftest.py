"""Fixtures of the integration tests."""

from __future__ import annotations

from tests.support.s3_servers import moto_server, rclone_server

__all__ = ["moto_server", "rclone_server"]
