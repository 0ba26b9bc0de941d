package usage

import (
	"google.golang.org/grpc"

	usagev1 "github.com/latchkey-dev/latchkey/api/usage/v1"
)

// ServiceName is the gRPC service's full name.
const ServiceName = "latchkey.usage.v1.Usage"

const (
	reportMethod = "/" + ServiceName + "/Report"
	recallMethod = "/" + ServiceName + "/Recall"
)

// rowsPerPage is the most rows that one message holds: some 150 KB.
const rowsPerPage = 1000

// The streams of the two methods, from either end.
type (
	reportClient = grpc.BidiStreamingClient[usagev1.ReportRequest, usagev1.ReportResponse]
	reportServer = grpc.BidiStreamingServer[usagev1.ReportRequest, usagev1.ReportResponse]
	recallClient = grpc.ServerStreamingClient[usagev1.RecallResponse]
	recallServer = grpc.ServerStreamingServer[usagev1.RecallResponse]
)

// service is what serves the two methods.
type service interface {
	report(stream reportServer) error
	recall(stream recallServer) error
}

// description is what a generator of gRPC code would have written.
func description() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: ServiceName,
		HandlerType: (*service)(nil),
		Streams: []grpc.StreamDesc{reportDescription(func(s any, stream grpc.ServerStream) error {
			return s.(service).report(&grpc.GenericServerStream[usagev1.ReportRequest, usagev1.ReportResponse]{ServerStream: stream})
		}), recallDescription(func(s any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(&usagev1.RecallRequest{}); err != nil {
				return err
			}
			return s.(service).recall(&grpc.GenericServerStream[usagev1.RecallRequest, usagev1.RecallResponse]{ServerStream: stream})
		})},
		Metadata: "api/usage/v1/usage.proto",
	}
}

func reportDescription(h grpc.StreamHandler) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: "Report", Handler: h, ServerStreams: true, ClientStreams: true}
}

func recallDescription(h grpc.StreamHandler) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: "Recall", Handler: h, ServerStreams: true}
}
