"""Server reflection, v1 and v1alpha, so that every generic client finds the schema.

grpcio-reflection has v1alpha only (grpc#38576). v1 has the same messages in another package, so
one servicer answers both.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

# Imported so that clients can resolve the details of an error by reflection.
from google.rpc import error_details_pb2  # noqa: F401
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from latentwire.v1 import image_generation_pb2 as pb

V1_FILE: Final = "grpc/reflection/v1/reflection.proto"
V1_PACKAGE: Final = "grpc.reflection.v1"
V1_SERVICE: Final = f"{V1_PACKAGE}.ServerReflection"
SERVICE_NAMES: Final = (
    pb.DESCRIPTOR.services_by_name["ImageGeneration"].full_name,
    pb.DESCRIPTOR.services_by_name["ModelAdmin"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    V1_SERVICE,
    reflection.SERVICE_NAME,
)


def add_reflection(server: grpc.aio.Server) -> None:
    """Registers reflection v1 and v1alpha."""
    servicer = reflection.aio.ReflectionServicer(SERVICE_NAMES, pool=_pool_with_v1())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(V1_SERVICE, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))


def _pool_with_v1() -> descriptor_pool.DescriptorPool:
    """Returns the process's descriptors, with those of reflection v1.

    Without them, clients that describe every listed service fail at v1's own.
    """
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(V1_FILE)
    except KeyError:
        v1 = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(v1)
        v1.name, v1.package = V1_FILE, V1_PACKAGE
        for field in (field for message in v1.message_type for field in message.field):
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(f"{V1_PACKAGE}alpha", V1_PACKAGE)
        for method in (method for service in v1.service for method in service.method):
            method.input_type = method.input_type.replace(f"{V1_PACKAGE}alpha", V1_PACKAGE)
            method.output_type = method.output_type.replace(f"{V1_PACKAGE}alpha", V1_PACKAGE)
        pool.AddSerializedFile(v1.SerializeToString())
    return pool
