#!/bin/sh
# Writes .env from .env.example with a random password wherever one is empty. Never touches an existing .env.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env exists: remove it first if you want new passwords (the databases keep the old ones)" >&2
    exit 1
fi
umask 077
while IFS= read -r line; do
    case $line in
        *_PASSWORD=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
        *) echo "$line" ;;
    esac
done < .env.example > .env
mkdir -p landing
echo "wrote .env"
