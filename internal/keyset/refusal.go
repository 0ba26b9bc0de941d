package keyset

import (
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// RefusalDetails names the resources for which a client refuses a response, for the details of the status that it refuses with. The
// control plane then sends the others of that response again at once, so that one bad entry does not hold up the rest.
func RefusalDetails(names []string) ([]*anypb.Any, error) {
	list := &structpb.ListValue{Values: make([]*structpb.Value, 0, len(names))}
	for _, name := range names {
		list.Values = append(list.Values, structpb.NewStringValue(valid(name)))
	}
	detail, err := anypb.New(list)
	if err != nil {
		return nil, err
	}
	return []*anypb.Any{detail}, nil
}

// RefusedNames reads what RefusalDetails wrote, and nothing from details of other kinds.
func RefusedNames(details []*anypb.Any) []string {
	var names []string
	for _, detail := range details {
		var list structpb.ListValue
		if !detail.MessageIs(&list) || detail.UnmarshalTo(&list) != nil {
			continue
		}
		for _, value := range list.GetValues() {
			if name := value.GetStringValue(); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}
