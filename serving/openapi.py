"""The OpenAPI document of the service. BentoML describes only its own routes, so this one is written here."""

from typing import Any

from blastwatch import DISCLAIMER, __version__
from blastwatch.decision import CLASS_NAMES, DECISIONS
from blastwatch.settings import IMAGE_POLICIES, Settings
from monitoring.statistics import TABLE
from serving.canary import CALLER_HEADER, LONGEST_HEADER, PATIENT_HEADER
from serving.guard import GUARDED, NEEDED, SIGNED
from serving.keys import READ
from serving.limits import BATCH_BODY_IMAGES
from serving.live_folder import REASONS
from serving.problems import MEDIA_TYPE
from serving.webhook import DELIVERY, SIGNATURE, TIMESTAMP

Json = dict[str, Any]

_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}
_PLAIN = {"text/plain": {"schema": _TEXT}}
_OOD = {"type": ["number", "null"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_ALIAS = _TEXT | {"description": "Under which it answers; `challenger` for a caller of the canary."}
_HEADERS = {
    CALLER_HEADER: "Who asks. It decides, each time alike, whether the challenger answers; default: the address.",
    PATIENT_HEADER: "Whose cells these are, of all images of the call. Stored only as a keyed hash.",
}


def _object(properties: Json, *, required: tuple[str, ...] | None = None) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else list(required),
    }


def _closed(properties: Json) -> Json:
    """What a caller sends: these members, all of them, and no more."""
    return _object(properties) | {"additionalProperties": False}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _history() -> Json:
    entries = {"type": "array", "items": {"type": "object"}, "description": "Newest first, the latest alone."}
    total = {"type": "integer", "description": "Entries until the time, also those that are not given."}
    check = _object({"intact": {"type": "boolean"}, "entries": {"type": "integer"}, "faults": {"type": "array"}})
    return _object({"told": {"type": "object"}, "entries": entries, "total": total, "check": check})


def _schemas() -> Json:
    model = {"name": _TEXT, "version": _TEXT, "digest": _TEXT, "alias": _ALIAS, "synthetic": {"type": "boolean"}}
    return {
        "Model": _object(model),
        "ModelFacts": _object(
            model
            | {
                "created": _TEXT,
                "promoted_at": {"type": ["string", "null"]},
                "promoted_by": {"type": ["string", "null"]},
                "overridden": {
                    "type": "array",
                    "items": _TEXT,
                    "description": "Gates of the registry that it failed when it was promoted all the same.",
                },
                "following": {"anyOf": [_reference("Following"), {"type": "null"}]},
                "metrics": {"type": "object", "additionalProperties": _NUMBER},
                "intervals": {
                    "type": "object",
                    "additionalProperties": _object({"low": _NUMBER, "high": _NUMBER}),
                    "description": "Of the metrics: 95 % intervals by patient, from the evidence of the package.",
                },
                "run_id": _TEXT,
                "architecture": _TEXT,
                "engine": _TEXT,
                "challenger": {
                    "type": ["object", "null"],
                    "description": "What reads in shadow and who answers the canary; null where neither is asked, or "
                    "the service follows no alias.",
                },
                "thresholds": _object({"hem": _SHARE, "all": _SHARE}),
                "input": _object({"crop": {"type": "integer"}, "size": {"type": "integer"}}),
                "data_digest": _TEXT,
                "split_digest": _TEXT,
                "git_commit": _TEXT,
                "keeps_images": {
                    "type": "string",
                    "enum": list(IMAGE_POLICIES),
                    "description": "Of which cells this service stores the picture that was sent.",
                },
                "history": {
                    "type": "boolean",
                    "description": "Whether `GET /v1/history` says what served when: not without a registry.",
                },
                "disclaimer": _TEXT,
            }
        ),
        "Following": _object(
            {
                "alias": _TEXT,
                "since": _TEXT | {"description": "When the process that answers began to serve this version."},
                "registry_reached": {"type": ["string", "null"]},
                "refused": {
                    "anyOf": [
                        _object(
                            {
                                "version": _TEXT,
                                "reason": {"type": "string", "enum": list(REASONS)},
                                "since": _TEXT,
                            }
                        ),
                        {"type": "null"},
                    ],
                    "description": "Why the version that the alias names does not serve, where it does not.",
                },
            }
        )
        | {"description": "null where the service stays on one version."},
        "Prediction": _object(
            {
                "id": _TEXT | {"description": "Names this answer; give it back with the label that came later."},
                "label": {
                    "type": "string",
                    "enum": list(CLASS_NAMES),
                    "description": "The more probable class. What to act on is `decision`, which may differ: it is "
                    "made at the version's own limits.",
                },
                "probability": _SHARE | {"description": "Calibrated probability of a blast (`all`)."},
                "probabilities": _object(dict.fromkeys(CLASS_NAMES, _SHARE)),
                "decision": {
                    "type": "string",
                    "enum": list(DECISIONS),
                    "description": "`refer`: too uncertain, or not this kind of image; show it to a person.",
                },
                "reasons": {
                    "type": "array",
                    "items": _TEXT,
                    "description": "Why the decision is `refer`: the concerns, and the limits between which the "
                    "probability lies. Empty for the other decisions.",
                },
                "model": _reference("Model"),
                "quality": _object(
                    {
                        "statistics": _object({row.name: _NUMBER | {"description": row.unit} for row in TABLE}),
                        "concerns": {"type": "array", "items": _TEXT},
                        "ood_score": _OOD | {"description": "How unlike the known cells the embedding is, about 1."},
                        "ood_limit": _OOD | {"description": "Above it the cell is referred; null for old packages."},
                    }
                ),
                "seen_in_training": {
                    "type": ["boolean", "null"],
                    "description": "Whether the version learned from this very image, by the digest of its pixels: "
                    "then the answer says nothing of new patients. null for old packages, which do not say.",
                },
                "disclaimer": _TEXT,
            }
        ),
        "Label": _closed({"id": _TEXT, "label": {"type": "string", "enum": list(CLASS_NAMES)}}),
        "Problem": _object(
            {
                "type": _TEXT | {"format": "uri-reference"},
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "advice": _TEXT | {"description": "What the caller can do; the same for every problem of this type."},
                "instance": _TEXT | {"format": "uri-reference"},
                "request_id": _TEXT,
            }
        ),
    }


def _form(field: str, *, several: bool, at_most: int = 1) -> Json:
    file = {"type": "string", "format": "binary"}
    schema = {"type": "array", "items": file, "minItems": 1, "maxItems": at_most} if several else file
    content = {"multipart/form-data": {"schema": _closed({field: schema})}}
    return {"required": True, "content": content}


def _headers(*names: str) -> list[Json]:
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "schema": _TEXT | {"maxLength": LONGEST_HEADER},
            "description": _HEADERS[name],
        }
        for name in names
    ]


def _answers(description: str, media_type: str, schema: Json, *refusals: int) -> Json:
    problem = {MEDIA_TYPE: {"schema": _reference("Problem")}}
    answers: Json = {"200": {"description": description, "content": {media_type: {"schema": schema}}}}
    for status in refusals:
        answers[str(status)] = {"description": "A problem (RFC 9457).", "content": problem}
        if status in (429, 503):
            answers[str(status)]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
            }
    return answers


def _linked(answers: Json) -> Json:
    """The same answers, the good one with the way from it to the label that comes later."""
    body = {"id": "$response.body#/id", "label": CLASS_NAMES[0]}
    link = {"operationId": "add_label", "requestBody": body, "description": "The truth of this cell."}
    answers["200"]["links"] = {"truth": link}
    return answers


def _drawn(answers: Json) -> Json:
    """The same answers, the good one with the headers that say what the picture is of."""
    label = {"schema": _TEXT | {"enum": list(CLASS_NAMES)}, "description": "The class for which the cell spoke."}
    version = {"schema": _TEXT, "description": "The model version that drew, which may be newer than an answer's."}
    answers["200"]["headers"] = {"Blastwatch-Label": label, "Blastwatch-Model-Version": version}
    return answers


def _webhook() -> Json:
    headers = [
        {"name": name, "in": "header", "required": True, "schema": _TEXT} for name in (SIGNATURE, TIMESTAMP, DELIVERY)
    ]
    answers = _answers("", "text/plain", _TEXT, 401, 413, 500)
    del answers["200"]
    return {
        "operationId": "webhook",
        "summary": "MLflow tells that an alias moved; the service looks at the registry now.",
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {"204": {"description": "Taken."}, **answers},
    }


def _secured(paths: Json, *, keyed: bool) -> Json:
    """The same addresses with what the door says of each: the key, and the refusals before anything is read."""
    for path, methods in paths.items():
        if not path.startswith(GUARDED) or path in SIGNED:
            continue
        needed = NEEDED.get(path, READ)
        for operation in methods.values():
            operation["security"] = [{"key": []}] if keyed else [{"key": []}, {}]
            operation["description"] = (
                f"Where keys are in use it needs one with the permission `{needed}`. Where none are, the service's own "
                "pages and the programs of its machine are answered, and no page of another site."
            )
            operation["responses"] = _answers("", "", {}, 401, 403, 429, 503) | operation["responses"]
    return paths


_IMAGE_REFUSALS = (400, 413, 415, 422, 429, 500, 504)
_LABEL_REFUSALS = (400, 404, 413, 415, 422, 500, 503, 504)


def document(settings: Settings, *, keyed: bool) -> Json:
    """The document, OpenAPI 3.1, with this service's limits in it.

    Args:
        keyed: whether requests need a key.
    """
    plain = {"200": {"description": "Yes.", "content": _PLAIN}}
    failing = "No: the engine failed several batches in a row, and none was answered since"
    ready = plain | {"503": {"description": f"{failing}. Ask again in half a minute.", "content": _PLAIN}}
    alive = plain | {"503": {"description": f"{failing}, for over a minute: start it anew.", "content": _PLAIN}}
    results = _object(
        {"results": {"type": "array", "items": {"anyOf": [_reference("Prediction"), _reference("Problem")]}}}
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Blastwatch",
            "version": __version__,
            "description": (
                f"Reads single-cell blood smear images: leukemic blast or normal cell. {DISCLAIMER} "
                f"An image may have {settings.max_image_bytes} bytes and {settings.max_image_pixels} pixels, a batch "
                f"call {settings.max_batch_images} images and {BATCH_BODY_IMAGES * settings.max_image_bytes} bytes."
            ),
        },
        "paths": _secured(
            {
                "/v1/predict": {
                    "post": {
                        "operationId": "predict",
                        "parameters": _headers(CALLER_HEADER, PATIENT_HEADER),
                        "summary": "Read one cell.",
                        "requestBody": _form("image", several=False),
                        "responses": _linked(
                            _answers("The answer.", "application/json", _reference("Prediction"), *_IMAGE_REFUSALS)
                        ),
                    }
                },
                "/v1/predict_batch": {
                    "post": {
                        "operationId": "predict_batch",
                        "parameters": _headers(CALLER_HEADER, PATIENT_HEADER),
                        "summary": "Read many cells; each gets its answer or its problem, in order.",
                        "requestBody": _form("images", several=True, at_most=settings.max_batch_images),
                        "responses": _answers(
                            "The answers.", "application/json", results, 400, 413, 415, 429, 500, 504
                        ),
                    }
                },
                "/v1/explain": {
                    "post": {
                        "operationId": "explain",
                        "parameters": _headers(CALLER_HEADER),
                        "summary": "Draw where the network looked (Grad-CAM, or its exact activation map).",
                        "requestBody": _form("image", several=False),
                        "responses": _drawn(
                            _answers(
                                "The heat map.", "image/png", {"type": "string", "format": "binary"}, *_IMAGE_REFUSALS
                            )
                        ),
                    }
                },
                "/v1/labels": {
                    "post": {
                        "operationId": "add_label",
                        "summary": "Tell the truth that came later for an earlier prediction.",
                        "requestBody": {
                            "required": True,
                            "content": {"application/json": {"schema": _reference("Label")}},
                        },
                        "responses": _answers("Stored.", "application/json", _reference("Label"), *_LABEL_REFUSALS),
                    }
                },
                "/v1/model": {
                    "get": {
                        "operationId": "model",
                        "summary": "The model version that serves.",
                        "responses": _answers("The facts.", "application/json", _reference("ModelFacts"), 500),
                    }
                },
                "/v1/history": {
                    "get": {
                        "operationId": "history",
                        "summary": "What served at a time, who made it so, on what data, and what was overridden.",
                        "parameters": [
                            {"name": "at", "in": "query", "schema": _TEXT, "description": "ISO 8601; default: now."}
                        ],
                        "responses": _answers("What served.", "application/json", _history(), 400, 404, 500, 503, 504),
                    }
                },
                **({"/v1/webhook": {"post": _webhook()}} if settings.webhook_secret else {}),
                "/metrics": {"get": {"operationId": "metrics", "summary": "Prometheus metrics.", "responses": plain}},
                "/livez": {"get": {"operationId": "livez", "summary": "Is it alive?", "responses": alive}},
                "/readyz": {"get": {"operationId": "readyz", "summary": "Does it answer?", "responses": ready}},
            },
            keyed=keyed,
        ),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "Made by `blastwatch keys add NAME`."}
            },
        },
    }
