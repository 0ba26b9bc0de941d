// Command dashboard writes the Grafana dashboard of Latchkey as JSON.
//
//	dashboard FILE
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dashboard FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	out, err := json.MarshalIndent(dashboard(), "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return os.WriteFile(path, append(out, '\n'), 0o644)
}

// object is one of JSON, whose fields encoding/json sorts.
type object = map[string]any

// panel is what differs from panel to panel.
type panel struct {
	title, about string
	stat         bool   // the latest value, large; otherwise a graph
	unit         string // in Grafana's words
	stack        bool
	queries      []query
}

type query struct{ expr, legend string }

// gridWidth is the width of a dashboard in Grafana's units.
const gridWidth = 24

func dashboard() object {
	var panels []object
	id, y := 0, 0
	place := func(of object, x, width, height int) {
		id++
		of["id"] = id
		of["gridPos"] = object{"x": x, "y": y, "w": width, "h": height}
		panels = append(panels, of)
	}
	for _, r := range rows() {
		place(object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}}, 0, gridWidth, 1)
		y++
		height := 8
		if r.panels[0].stat {
			height = 4
		}
		width := gridWidth / r.columns
		for i, p := range r.panels {
			column := i % r.columns
			place(p.object(), column*width, width, height)
			if column == r.columns-1 || i == len(r.panels)-1 {
				y += height
			}
		}
	}
	return object{
		"uid": "latchkey", "title": "Latchkey", "tags": []string{"latchkey"}, "schemaVersion": 41, "version": 1, "editable": true,
		"description": "API keys for LLM APIs: what is asked, refused and spent, and how the two planes do. Written by hack/dashboard.",
		"time":        object{"from": "now-6h", "to": "now"}, "refresh": "30s", "timezone": "browser", "graphTooltip": 1,
		"annotations": object{"list": []object{}}, "links": []object{}, "panels": panels,
		"templating": object{"list": []object{
			{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0},
			{
				"name": "namespace", "type": "query", "label": "Installation", "datasource": source(), "refresh": 2, "hide": 0,
				"query":      object{"query": "label_values(latchkey_enforcer_build_info, namespace)", "refId": "namespaces"},
				"includeAll": true, "allValue": ".*", "multi": false, "current": object{"text": "All", "value": "$__all"},
			},
		}},
	}
}

func source() object { return object{"type": "prometheus", "uid": "${datasource}"} }

func (p panel) object() object {
	var targets []object
	for i, q := range p.queries {
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "datasource": source(), "expr": q.expr, "legendFormat": q.legend, "editorMode": "code", "range": !p.stat, "instant": p.stat,
		})
	}
	defaults := object{"unit": p.unit, "min": 0}
	out := object{
		"title": p.title, "description": p.about, "datasource": source(), "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": []object{}},
	}
	if p.stat {
		out["type"] = "stat"
		out["options"] = object{"reduceOptions": object{"calcs": []string{"lastNotNull"}}, "colorMode": "none", "graphMode": "none"}
		return out
	}
	custom := object{"drawStyle": "line", "fillOpacity": 10, "showPoints": "never", "stacking": object{"mode": "none"}}
	if p.stack {
		custom["stacking"], custom["fillOpacity"] = object{"mode": "normal"}, 40
	}
	defaults["custom"] = custom
	out["type"] = "timeseries"
	out["options"] = object{
		"legend":  object{"displayMode": "table", "placement": "bottom", "calcs": []string{"lastNotNull", "max"}},
		"tooltip": object{"mode": "multi", "sort": "desc"},
	}
	return out
}
