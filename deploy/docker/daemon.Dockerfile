# The daemon's image: docker build -f deploy/docker/daemon.Dockerfile -t ringpilot/ringpilot:0.1.0 .
# For another machine: --platform linux/arm64 (built there, or by an emulator).
FROM rust:1.90-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake perl make libcap2-bin && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p ringpilot && cp target/release/ringpilot /ringpilot && strip /ringpilot
# The same once more, with the capability to read what others own, and nothing else, without root. The kernel does not start
# it where the container may not have that capability: so it is a program of its own, which the chart starts.
RUN cp /ringpilot /ringpilot-reads-all && setcap cap_dac_read_search=ep /ringpilot-reads-all

FROM debian:bookworm-slim
COPY --from=build /ringpilot /ringpilot-reads-all /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/ringpilot"]
CMD ["run"]
