"""Every setting of the runtime: its type, default, unit and meaning.

The reference page and `runtime.yaml` are checked against these classes. Durations are seconds, sizes bytes.
`live` in a field's metadata marks what a running server takes over when the file changes. Longer than most modules, for
all that can be set is in one place.
"""

# ruff: noqa: RUF009 - `setting` is a field specifier, as `attrs.field` is
from __future__ import annotations

from typing import Any, Literal

import attrs

Placement = Literal["thread", "process"]


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    live: bool = False,
    secret: bool = False,
) -> Any:
    """A documented field; bounds are inclusive and checked when the configuration is loaded.

    The value of a `secret` one is never shown or put into an error message.
    """
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "live": live, "secret": secret}
    if callable(default):
        return attrs.field(factory=default, metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


BILLING_HEADER = r"x-anthropic-billing-header:(?: cc[a-z_]*=[^;\s]*;)+"
"""What Claude Code puts before its system prompt; its values differ at every turn."""


@attrs.frozen
class Models:
    """Which models are served and where they may come from."""

    default: str = setting(
        "smollm2-135m", "Model served when a request names none: a stored name, an alias or a folder."
    )
    preload: tuple[str, ...] = setting((), "Further models loaded at start.")
    replicas: int = setting(
        1, "Processes that serve each model; each holds the weights and its share of memory_fraction.", minimum=1
    )
    warm_prompts: tuple[str, ...] = setting(
        (),
        "System prompts that are prefilled at start, each as NAME=TEXT or NAME=@FILE; NAME@MODEL for a model that is "
        "not the default one.",
    )
    trusted_folders: tuple[str, ...] = setting((), "Folders from which models may be loaded by path.")
    load_on_demand: bool = setting(
        True, "A request that names a stored model waits while it is loaded; if not, it is refused."
    )
    memory_bytes: int = setting(
        0,
        "What weights and caches of all loaded models may take; 0 derives it from generation.memory_fraction.",
        minimum=0,
    )
    pinned: tuple[str, ...] = setting((), "Models that stay loaded: neither memory nor idleness unloads them.")
    idle_seconds: float = setting(
        0.0, "A model that nobody has used for so long is unloaded; 0: never.", minimum=0, live=True
    )
    adapters: tuple[str, ...] = setting(
        (), "LoRA adapters beside the stored ones, each as BASE:NAME=FOLDER; a request chooses BASE:NAME."
    )
    tool_parser: tuple[str, ...] = setting(
        (), "How models write tool calls where their chat template does not tell: MODEL=PARSER, or PARSER for all."
    )
    reasoning_parser: tuple[str, ...] = setting(
        (), "How models mark reasoning where their chat template does not tell: MODEL=PARSER, or PARSER for all."
    )


@attrs.frozen
class Http:
    """The HTTP frontend."""

    host: str = setting("127.0.0.1", "Address to bind. Anything but loopback should have an API key.")
    port: int = setting(8080, "Port to bind; 0 picks a free one.", minimum=0, maximum=65535)
    api_key: str = setting(
        "", "When set, every request but /livez and /readyz must carry it as a bearer token.", secret=True
    )
    max_body_bytes: int = setting(16 << 20, "Largest request body.", minimum=1024)
    allowed_hosts: tuple[str, ...] = setting(
        (), "Further names that the Host header may have while bound to loopback, as behind a proxy."
    )
    probe_seconds: float = setting(
        2.0, "How long the runtime may take to answer /livez, /readyz and /health.", minimum=0.05
    )
    heartbeat_seconds: float = setting(10.0, "Silence on a stream after which an SSE comment is sent.", minimum=0.05)


@attrs.frozen
class Stdio:
    """The stdio JSON-RPC frontend."""

    max_line_bytes: int = setting(16 << 20, "Largest message taken from the host.", minimum=1024)
    max_output_line_bytes: int = setting(65_000, "Largest line written to a newline-delimited host.", minimum=1024)


@attrs.frozen
class Admission:
    """Who gets in."""

    max_waiting: int = setting(
        4096, "Sequences that may wait for a slot; more are refused with retry-after.", minimum=1
    )
    max_n: int = setting(16, "Largest number of choices per request.", minimum=1)
    default_max_tokens: int = setting(
        4096, "Answer length when a request sets none (the context bounds it too).", minimum=1
    )
    stream_window: int = setting(512, "Tokens a consumer may be behind before its own sequence is paused.", minimum=8)
    request_timeout: float = setting(600.0, "Longest life of a request that names no timeout.", minimum=0.1)
    rendering_threads: int = setting(0, "Threads that template and tokenise; 0 is one per core.", minimum=0)
    parallel_tokenizer: bool = setting(
        True, "Tokenise long prompts in pieces over all cores, where that is known to give the same ids."
    )
    keepalive_seconds: float = setting(1.0, "How often a frontend says that it is there.", minimum=0.05)
    frontend_timeout: float = setting(10.0, "Silence after which a frontend is taken for gone.", minimum=0.2)
    max_attempts: int = setting(3, "How often a sequence without a token is retried on another replica.", minimum=1)
    cache_per_tenant: bool = setting(
        False, "Share cached prefixes only within a tenant, so that none can learn by timing what another has sent."
    )
    volatile_lines: tuple[str, ...] = setting(
        (BILLING_HEADER,),
        "Regular expressions of lines left out where a conversation's first system message begins with them: what a "
        "client changes at every turn would defeat the prefix cache.",
    )


@attrs.frozen
class Batching:
    """When and where work runs."""

    ageing_seconds: float = setting(
        20.0, "Waiting time that lifts a sequence by one priority class.", minimum=0.1, live=True
    )
    load_tokens: int = setting(
        128,
        "Cached prompt tokens that one more running sequence outweighs when a replica is chosen.",
        minimum=0,
        live=True,
    )


@attrs.frozen
class Speculation:
    """Speculative decoding: tokens are proposed cheaply and checked together, where that is faster."""

    mode: Literal["off", "lookup", "draft", "auto"] = setting(
        "auto",
        "Where proposals come from: `lookup` the text so far and the request's prediction, `draft` the draft model, "
        "`auto` whichever promises more.",
    )
    draft_model: str = setting(
        "", "Draft model of the default model: a stored name, an alias or a folder. It must have the same vocabulary."
    )
    max_tokens: int = setting(8, "Most tokens proposed to a row at once.", minimum=1, maximum=32)
    draft_weights: Literal["auto", "model", "4bit"] = setting(
        "auto",
        "Weights of the draft model: `model` as they are, `4bit` rounded at load, which changes how often it is right "
        "and no answer; `auto` rounds them on the CPU, where it pays.",
    )


@attrs.frozen
class PrefixCache:
    """What was computed for earlier prompts and answers, reused for prompts that begin alike."""

    enabled: bool = setting(True, "Keep and reuse the keys and values of prompts and answers.")
    bytes: int = setting(
        0,
        "Memory for them out of the budget of cached keys and values, at most half of it; 0: a quarter of it.",
        minimum=0,
    )
    block_tokens: int = setting(256, "Most tokens that are kept, evicted and written together.", minimum=16)
    disk_bytes: int = setting(
        4 << 30, "Files that survive a restart, over all models; 0: nothing is written to disk.", minimum=0
    )
    directory: str = setting("", "Folder of these files; empty is `state/prefix` in the home folder.")

    def share_of(self, kv_bytes: int) -> int:
        """What the cache takes of a budget for keys and values."""
        if not self.enabled:
            return 0
        return min(self.bytes, kv_bytes // 2) if self.bytes else kv_bytes // 4


@attrs.frozen
class Guidance:
    """Structured output: schemas and grammars that answers are held to."""

    compile_seconds: float = setting(
        5.0, "How long a schema or grammar may take to compile before its request is refused.", minimum=0.05
    )
    cached: int = setting(64, "Compiled schemas and grammars kept by each replica.", minimum=1)
    at_start: bool = setting(
        True, "Read the vocabulary while the model loads, so that the first guided request holds nobody up."
    )


@attrs.frozen
class MetalOptimizations:
    """How host and device work side by side, on every back end."""

    memory_pool: bool = setting(
        True,
        "Where slabs of keys and values are written in place: allocate them ahead, and keep as much of them for the "
        "next rows when rows leave.",
    )
    memory_pool_bytes: int = setting(
        256 << 20,
        "Bytes up to which slabs are kept that no row uses; on CUDA at least what max_rows short ones take, up to an "
        "eighth of the memory for keys and values.",
        minimum=0,
    )
    blit_queue: bool = setting(
        True, "Build the next step, and upload what it needs, while the device computes; off: only after its answer."
    )
    command_buffer_ring: int = setting(
        2,
        "Decode steps in flight: the device has the next ones while a step's tokens are handled. Limits of Metal's "
        "command buffers themselves cannot be set in MLX 0.32.",
        minimum=1,
        maximum=4,
    )
    ring_kv_bytes: int = setting(
        0,
        "Keys and values up to which steps share the ring where MLX copies what a step in flight still reads; 0: by "
        "back end.",
        minimum=0,
    )


@attrs.frozen
class Generation:
    """The engine of each replica."""

    engine: Literal["mlx", "scripted"] = setting(
        "mlx", "`scripted` serves prepared tokens: for benchmarks of everything but the model."
    )
    max_rows: int = setting(32, "Rows decoded together.", minimum=1)
    max_prefills: int = setting(2, "Prompts prefilled side by side while others decode.", minimum=1)
    prefill_tokens: int = setting(512, "Most prompt tokens processed between two decode steps.", minimum=16)
    prefill_slowdown: float = setting(
        2.0, "How many times longer than others a decode step may take that has prompt tokens beside it.", minimum=1
    )
    inter_token_seconds: float = setting(
        0.0, "Longest such step, in seconds, whatever prefill_slowdown allows; 0: no such bound.", minimum=0
    )
    metal_optimizations: MetalOptimizations = setting(MetalOptimizations, "How host and device work side by side.")
    in_place_attention: Literal["auto", "on", "off"] = setting(
        "auto",
        "Write keys and values in place by a kernel of ours, so that no step in flight makes MLX copy them; `auto`: on "
        "CUDA, and on the CPU where it was built. Metal's has not been run.",
    )
    composed_attention: Literal["auto", "on", "off"] = setting(
        "auto",
        "Attend by plain operations where a pass has several tokens a row, for fused attention prepares anew for every "
        "number of tokens and columns; `auto`: on CUDA.",
    )
    product_kernels: bool = setting(
        True, "On CUDA multiply 2 to 32 rows (16 with large deep weights, 64 with 4-bit ones) by kernels of ours."
    )
    dequantize: Literal["auto", "on", "off"] = setting(
        "auto",
        "Keep quantised weights dequantised in memory; `auto`: on CUDA, where product_kernels does not take them and "
        "they leave half of it free.",
    )
    sampler_kernel: Literal["auto", "on", "off"] = setting(
        "auto",
        "One kernel draws all rows' tokens; `auto`: on CUDA, and on the CPU where it is built; never run on Metal.",
    )
    compile_steps: Literal["auto", "on", "off"] = setting(
        "auto", "Compile the decode steps that write in place; `auto`: on CUDA."
    )
    kv_type: Literal["model", "8bit", "4bit"] = setting(
        "model", "How keys and values are cached: in the model's own type, or quantised."
    )
    memory_fraction: float = setting(
        0.6, "Share of the machine's memory that weights and caches may take.", minimum=0.05, maximum=0.95
    )
    max_adapters: int = setting(
        8, "LoRA adapters that a replica keeps loaded; more only while rows use them all.", minimum=1
    )
    kv_bytes: int = setting(
        0,
        "Budget of cached keys and values; 0 derives it from memory_fraction. A request counts with the room of a row "
        "as long as it may get (docs/models.md).",
        minimum=0,
    )
    cache_limit_bytes: int = setting(1 << 30, "What MLX's allocator may keep for reuse.", minimum=0)
    memory_limit_bytes: int = setting(
        0, "From so much on MLX's allocator waits for running work before it takes more; 0 leaves MLX's own.", minimum=0
    )
    wired_limit_bytes: int = setting(0, "Memory wired on Metal; 0 leaves it to the system.", minimum=0)
    cpu_dense_rows: int = setting(
        8,
        "On the CPU, rows from which quantised layers are dequantised and multiplied by the BLAS; 0: never.",
        minimum=0,
    )
    prefix_cache: PrefixCache = setting(PrefixCache, "Prefix cache.")
    speculation: Speculation = setting(Speculation, "Speculative decoding.")
    guidance: Guidance = setting(Guidance, "Structured output.")
    native_kernels: bool = setting(True, "On the CPU compute with our own kernels in place of MLX's, where built.")
    blas: bool = setting(True, "On Linux put OpenBLAS ahead of the reference BLAS of MLX's wheel.")
    object_pooling: bool = setting(
        True, "Fill the objects that tell of a step's tokens anew at the next step, in place of new ones."
    )
    scripted_step_seconds: float = setting(0.0, "Time one step of the scripted engine takes.", minimum=0)


@attrs.frozen
class Slo:
    """Objectives that QoS judges; 0 switches one off."""

    first_token_p95: float = setting(10.0, "Seconds to the first token.", minimum=0, live=True)
    inter_token_p95: float = setting(2.0, "Seconds between tokens.", minimum=0, live=True)
    queue_p95: float = setting(5.0, "Seconds waiting for a slot.", minimum=0, live=True)
    error_rate: float = setting(0.05, "Share of requests ended by our own faults.", minimum=0, maximum=1, live=True)


@attrs.frozen
class Qos:
    """Judging and remedies."""

    enabled: bool = setting(True, "Judge the objectives and act on them.")
    slo: Slo = setting(Slo, "The objectives.")
    violations_to_act: int = setting(3, "Snapshots in violation before a remedy.", minimum=1, live=True)
    recoveries_to_stop: int = setting(5, "Healthy snapshots before a remedy ends.", minimum=1, live=True)
    cooldown_seconds: float = setting(10.0, "Least time between two remedies.", minimum=0, live=True)


@attrs.frozen
class Telemetry:
    """Metrics and logs."""

    snapshot_seconds: float = setting(1.0, "How often QoS gets a snapshot.", minimum=0.05)
    window_seconds: float = setting(60.0, "Length of the sliding window.", minimum=1)
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level logged.", live=True)
    log_format: Literal["console", "json"] = setting("console", "How log lines look on stderr.")


@attrs.frozen
class Actors:
    """Where each control actor runs: a thread of the host process, or a process of its own."""

    admission: Placement = setting("thread", "Placement of admission.")
    batching: Placement = setting("thread", "Placement of batching.")
    telemetry: Placement = setting("thread", "Placement of telemetry.")
    qos: Placement = setting("thread", "Placement of QoS.")


@attrs.frozen
class Supervision:
    """Starting, watching, restarting, stopping."""

    ready_seconds: float = setting(30.0, "A control actor must report ready within this.", minimum=0.1)
    load_seconds: float = setting(600.0, "A replica must load its model within this.", minimum=1)
    heartbeat_seconds: float = setting(0.5, "How often an actor reports.", minimum=0.05)
    heartbeat_timeout: float = setting(20.0, "Silence after which a control actor is taken for dead.", minimum=0.5)
    progress_timeout: float = setting(
        120.0, "Work pending and no step for this long: the replica is dead.", minimum=0.5
    )
    restart_backoff: float = setting(0.2, "Wait before the first restart; doubles each time.", minimum=0)
    restart_backoff_max: float = setting(30.0, "Longest wait before a restart.", minimum=0)
    max_restarts: int = setting(10, "Failed starts in a row after which an actor is given up.", minimum=0)
    drain_seconds: float = setting(30.0, "At shutdown, how long running requests may finish.", minimum=0)


@attrs.frozen
class Transport:
    """Sockets."""

    high_water_mark: int = setting(100_000, "Messages a socket holds before it is full.", minimum=100)
    linger_ms: int = setting(500, "How long a closing socket may still send, in milliseconds.", minimum=0)
    max_message_bytes: int = setting(64 << 20, "Largest frame accepted.", minimum=1 << 16)
    ask_timeout: float = setting(30.0, "How long a frontend waits for an answer that needs no model.", minimum=0.1)


@attrs.frozen
class Settings:
    """The whole of runtime.yaml."""

    models: Models = setting(Models, "Models.")
    http: Http = setting(Http, "HTTP frontend.")
    stdio: Stdio = setting(Stdio, "stdio frontend.")
    admission: Admission = setting(Admission, "Admission.")
    batching: Batching = setting(Batching, "Batching.")
    generation: Generation = setting(Generation, "Generation.")
    qos: Qos = setting(Qos, "Quality of service.")
    telemetry: Telemetry = setting(Telemetry, "Telemetry.")
    actors: Actors = setting(Actors, "Placement of the control actors.")
    supervision: Supervision = setting(Supervision, "Supervision.")
    transport: Transport = setting(Transport, "Transport.")
