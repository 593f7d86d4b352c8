# One image for migrate, code server, webserver and daemon, with the versions of constraints.txt, as in the tests.
FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin app \
    && mkdir -p /app /landing /var/lib/crm_analytics/dagster \
    && chown -R app:app /app /var/lib/crm_analytics

WORKDIR /app

# dependencies first, because they rarely change
COPY pyproject.toml constraints.txt ./
# such as "k8s,s3"; only this installation has them, because an image of one machine needs none
ARG EXTRAS=""
RUN mkdir crm_analytics && touch crm_analytics/__init__.py README.md \
    && pip install --constraint constraints.txt --editable ".[s3,lake${EXTRAS:+,$EXTRAS}]"

# an editable installation finds the modules here, so nothing needs to be installed again
COPY . .

USER app
ENV DAGSTER_HOME=/app CRM_ANALYTICS_HOME=/var/lib/crm_analytics DAGSTER_DISABLE_TELEMETRY=yes
