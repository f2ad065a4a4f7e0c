#!/bin/sh
# SGLang's router (`pip install sglang-router==0.3.2`) in front of several servers of one model.
# Requests with the same prefix go to the same server, which has the prefix in its prefix cache.
#
#   kilotok serve MODEL --port 8001 &
#   kilotok serve MODEL --port 8002 &
#   configs/sglang_router.sh --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002
#
# Clients then use http://127.0.0.1:30000/v1. If the servers have keys, they must share one:
# `--api-key KEY` gives it to the router, and clients send it too.
#
# While a server starts, drains or stalls, its /ready fails; after two failed checks the router
# sends it no new requests.
exec sglang-router launch \
    --policy cache_aware \
    --health-check-endpoint /ready \
    --health-check-interval-secs 5 \
    --health-failure-threshold 2 \
    "$@"
