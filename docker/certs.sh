#!/bin/sh
# Certificates and keys of a federation: `docker/certs.sh --help`. PYTHON names another interpreter.
exec "${PYTHON:-python3}" "$(dirname "$0")/certs.py" "$@"
