#!/bin/sh
# Writes .env from .env.example with random secrets in the empty places. Never changes an existing .env.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env exists. To get new passwords, remove it first (existing databases keep their old ones)" >&2
    exit 1
fi
(
    umask 077
    while IFS= read -r line; do
        case $line in
            *_PASSWORD= | *_SECRET_KEY=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
            *) echo "$line" ;;
        esac
    done < .env.example > .env
)
mkdir -p landing
chmod a+rx landing # the container reads it as another user
echo "wrote .env"
