"""Routes beside edits: alignments, models, health and metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response

from adapedit.http.bodies import parse_body, read_json
from adapedit.http.errors import ApiError
from adapedit.http.lane import Lane
from adapedit.http.schema import Aligned, AlignmentBody, Health, ModelList, ServedModel
from adapedit.http.service import Owner, Parts
from adapedit.request import EditRequest

router = APIRouter(tags=["operations"])

ALIGNMENT = {"$ref": "#/components/schemas/AlignmentBody"}
UNWELL: dict[int | str, Any] = {503: {"model": Health}}


@router.post(
    "/v1/alignments",
    operation_id="align",
    response_model=Aligned,
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": ALIGNMENT}}}},
)
async def align(request: Request, owner: Owner, service: Parts) -> Aligned:
    """Which word of the target prompt stands for which of the source prompt; the model is not run."""
    service.take(request, owner)
    body = parse_body(AlignmentBody, await read_json(request))
    limit = service.settings.max_text
    for name in ("source_prompt", "target_prompt"):
        if len(getattr(body, name)) > limit:
            raise ApiError(422, f"{name} has more than {limit} characters; say it shorter", param=name)
    lane = service.jobs.lane(body.model)
    prompts = {name: getattr(body, name) for name in ("source_prompt", "target_prompt")}
    found = await service.run(lane.align, EditRequest.make(**prompts))
    words: dict[str, Any] = {
        name: [asdict(word) for word in getattr(found, name)] for name in ("source_words", "target_words")
    }
    return Aligned(
        model=lane.name, source_prompt=found.source_prompt, target_prompt=found.target_prompt, **words
    )


@router.get("/v1/models", operation_id="list_models", response_model=ModelList)
def list_models(owner: Owner, service: Parts) -> ModelList:
    """The models that requests may name."""
    return ModelList(data=[_shown(lane) for lane in service.jobs.lanes.values()])


@router.get("/v1/models/{model}", operation_id="get_model", response_model=ServedModel)
def get_model(model: str, owner: Owner, service: Parts) -> ServedModel:
    """One of them."""
    lane = service.jobs.lanes.get(model)
    if lane is None:
        raise service.jobs.no_model(model)
    return _shown(lane)


@router.get("/health", operation_id="get_health", response_model=Health, responses=UNWELL)
def get_health(service: Parts, response: Response) -> Health:
    """Whether the process is alive; 503 where a model has failed, so that it should be started again."""
    found = _health(service)
    response.status_code = 503 if found.status == "failed" else 200
    return found


@router.get("/health/ready", operation_id="get_ready", response_model=Health, responses=UNWELL)
def get_ready(service: Parts, response: Response) -> Health:
    """Whether edits are taken: every model is loaded and has made one edit, and the server is not about to end."""
    found = _health(service)
    response.status_code = 200 if found.status == "ok" else 503
    return found


@router.get("/metrics", operation_id="get_metrics", response_class=Response)
def get_metrics(owner: Owner, service: Parts) -> Response:
    """Counts and times, in Prometheus's text."""
    return Response(service.jobs.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _health(service: Any) -> Health:
    jobs = service.jobs
    states = {name: lane.shown_state for name, lane in jobs.lanes.items()}
    others = set(states.values()) - {"ready"}
    status: Any = "draining" if jobs.draining else "ok"
    if others and not jobs.draining:
        status = "loading" if others == {"loading"} else "failed"
    return Health(status=status, models=states)


def _shown(lane: Lane) -> ServedModel:
    model = lane.model
    facts = None if model is None else model.facts
    return ServedModel(
        id=lane.name,
        created=lane.since,
        state=lane.shown_state,
        runner=None if model is None else model.runner.name,
        side=None if model is None else model.side,
        methods=[] if model is None else lane.methods,
        known_words=None if facts is None or facts.known_words is None else list(facts.known_words),
    )
