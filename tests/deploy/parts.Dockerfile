# Stands for the public images of NATS, Redis and Prometheus where no registry is reachable: Debian's packages of them.
ARG BASE
FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nats-server prometheus redis-server wget \
    && mkdir /prometheus && chown 65534:65534 /prometheus
