# One image with every binary of Weft; compose.yaml and the chart choose which one runs.
#
#   docker build -t weft .                       from source
#   docker build -t weft --target prebuilt .     with binaries that were built outside and lie in target/image
#
# The base must be Debian 12 or newer. `prebuilt` comes before the stage that compiles, so that builders without BuildKit, which run
# every stage before their target, need no compiler for it.
ARG BASE=debian:bookworm-slim
ARG RUST=rust:1.95-bookworm

FROM ${BASE} AS base
# For S3 and NATS over TLS. A base that has them needs no network here.
RUN [ -e /etc/ssl/certs/ca-certificates.crt ] \
    || (apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*)
# A volume that is mounted for the first time takes over the owner of the folder that it covers.
RUN for dir in /run/weft /var/lib/weft/cache /var/lib/weft/s3 /var/lib/weft/digests /var/lib/weft/usage /models; do \
        mkdir -p "$dir" && chown 10001:10001 "$dir"; \
    done
USER 10001:10001
WORKDIR /var/lib/weft
# The services drain on SIGTERM, reap nothing and write only to volumes and /tmp: no init, and a read-only root will do.
STOPSIGNAL SIGTERM
CMD ["weft", "--help"]
LABEL org.opencontainers.image.title="Weft" \
      org.opencontainers.image.description="Many LoRA adapters over one resident base model" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM base AS prebuilt
ARG BINARIES=target/image
COPY ${BINARIES}/ /usr/local/bin/

FROM ${RUST} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bins \
    && mkdir /out \
    && cd target/release \
    && cp weft weft-gateway weft-adapter-registry weft-cache-daemon weft-worker weft-embedded-s3 /out/

FROM base AS runtime
COPY --from=build /out/ /usr/local/bin/
