# One recipe for every image: docker build --build-arg SERVICE=order -t sagapost-order .
# SERVICE is a member's folder; MODULE is what starts, where that is not the member's own __main__ (sandbox: the provider).

FROM python:3.13-slim AS wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Stays empty unless --build-arg names a mirror; pip then uses that instead of its default.
ARG PIP_INDEX_URL
# The backend that builds the members lives in this stage only. No SERVICE yet: every image shares these layers.
COPY locks/build.txt /src/locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /backend && /backend/bin/python -m pip install --quiet --require-hashes -r /src/locks/build.txt
COPY . /src
RUN cd /src && PATH=/backend/bin:$PATH python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir /wheels \
    $(for member in */pyproject.toml; do echo "./${member%/*}"; done)

FROM python:3.13-slim AS venv
ARG SERVICE
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY locks/${SERVICE}.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /venv \
 && python -m pip --python /venv/bin/python install --quiet --require-hashes -r "/locks/${SERVICE}.txt"
# pip takes the member and the workspace members it asks for from the wheels, and with --no-index fails here when the
# list above does not cover what they need.
RUN --mount=from=wheels,source=/wheels,target=/wheels \
    python -m pip --python /venv/bin/python install --quiet --no-index --find-links /wheels "sagapost-${SERVICE}"
# Only the operator's image runs migrations.
RUN --mount=from=wheels,source=/src,target=/src \
    mkdir /app && if [ "${SERVICE}" = ops ]; then cp -r /src/migrations /app/; fi

FROM python:3.13-slim
ARG SERVICE
ARG MODULE=sagapost_${SERVICE}
COPY --from=venv /app /app
COPY --from=venv /venv /venv
# A volume mounted on /data takes this owner. The number, not a name, is what an orchestrator can check.
RUN install -d -o 10001 -g 10001 /data
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 \
    SAGAPOST_ENV=production SAGAPOST_HOST=0.0.0.0 SAGAPOST_PORT=8000 SAGAPOST_MIGRATIONS=/app/migrations \
    SAGAPOST_MODULE=${MODULE}
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
# A plain socket: it starts in a tenth of urllib's time, many times a minute, and asks no proxy about 127.0.0.1.
HEALTHCHECK --interval=3s --timeout=5s --start-period=60s --retries=5 CMD ["python", "-S", "-c", \
  "import os, socket; s = socket.create_connection(('127.0.0.1', int(os.environ['SAGAPOST_PORT'])), 4); s.sendall(b'GET /health/ready HTTP/1.0\\r\\n\\r\\n'); raise SystemExit(b' 200 ' not in s.recv(64))"]
# exec: Python itself is process 1 and gets the stop signal.
ENTRYPOINT ["sh", "-c", "exec python -m \"$SAGAPOST_MODULE\" \"$@\"", "sagapost"]
