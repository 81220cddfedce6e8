// Elasticsearch 8 or 9, started from the jars of Maven Central: one node, plain HTTP, its transport from
// HOME/modules/transport-netty4, which `elasticsearch` beside this folder lays out.
// Arguments: HOME, then settings as KEY=VALUE. With -Dringpilot.stdin=true it ends when its standard input does.

import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

public class ModularNode {
    public static void main(String[] args) throws Exception {
        Settings.Builder settings = Settings.builder().put("path.home", args[0]);
        for (int i = 1; i < args.length; i++) {
            String[] pair = args[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        LogConfigurator.configureWithoutConfig(Settings.EMPTY);
        Environment environment =
                InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), null, () -> "node");
        PluginsLoader loader = PluginsLoader.createPluginsLoader(
                PluginsLoader.loadModulesBundles(Path.of(args[0], "modules")), Set.of(), Map.of(), false);
        Node node = new Node(environment, loader);
        node.start();
        if (Boolean.getBoolean("ringpilot.stdin")) {
            while (System.in.read() >= 0) {}
            node.close();
            System.exit(0);
        }
        Thread.currentThread().join();
    }
}
