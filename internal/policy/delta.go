package policy

// Kind tells what a Ref names.
type Kind uint8

// The kinds of entries.
const (
	KindSystem Kind = iota
	KindApplication
	KindKey
	KindModel
)

// Ref names one entry of a policy set: an application by its ID, a key by its UID, a model by its name. The system has no name.
type Ref struct {
	Kind Kind
	Name string
}

// Delta is a change of a policy set, or, as the first of a synchronisation, the whole of it.
type Delta struct {
	System       *System // nil: unchanged
	Applications []*Application
	Keys         []*Key
	Models       []*Model
	Removed      []Ref
}

// Empty reports whether the delta changes nothing.
func (d *Delta) Empty() bool {
	return d.System == nil && len(d.Applications)+len(d.Keys)+len(d.Models)+len(d.Removed) == 0
}
