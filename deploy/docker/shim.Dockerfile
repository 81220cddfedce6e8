# The shim's image, one static program and nothing else: docker build -f deploy/docker/shim.Dockerfile -t ringpilot/shim:0.1.0 .
FROM rust:1.90-bookworm AS build
ARG TARGETARCH
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    case "$TARGETARCH" in arm64) target=aarch64-unknown-linux-musl ;; *) target=x86_64-unknown-linux-musl ;; esac && \
    rustup target add "$target" && cargo build --release --locked -p ringpilot-shim --target "$target" && \
    cp "target/$target/release/ringpilot-shim" /ringpilot-shim && strip /ringpilot-shim

FROM scratch
COPY --from=build /ringpilot-shim /ringpilot-shim
USER 65532:65532
ENTRYPOINT ["/ringpilot-shim"]
